// Bun's pub/sub, which is that of µWebSockets. At its fastest: no compression, topics in C++, and all of a batch
// published in one turn, so that it leaves in one write for each client.
//
// Clients say "+1 5 17" to subscribe, which is answered "ok", and ">TOPIC TEXT" to post. Control lines are "TOPIC TEXT";
// an empty one ends a batch. Prints {"port":P,"control":C}; ends with its parent.
const server = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  fetch: (request, server) => (server.upgrade(request) ? undefined : new Response(null, { status: 400 })),
  websocket: {
    perMessageDeflate: false,
    sendPings: false,
    idleTimeout: 0,
    message(client, text) {
      if (text[0] === "+") {
        for (const topic of text.slice(1).split(" ")) client.subscribe(topic);
        client.send("ok");
      } else {
        const space = text.indexOf(" ");
        server.publish(text.slice(1, space), text.slice(space + 1));
      }
    },
  },
});

let begun = "";
const control = Bun.listen({
  hostname: "127.0.0.1",
  port: 0,
  socket: {
    data(_, chunk) {
      begun += chunk.toString("latin1"); // ASCII by agreement
      const end = begun.lastIndexOf("\n\n");
      if (end < 0) return;
      for (const line of begun.slice(0, end).split("\n")) {
        const space = line.indexOf(" ");
        if (space > 0) server.publish(line.slice(0, space), line.slice(space + 1));
      }
      begun = begun.slice(end + 2);
    },
  },
});
console.log(JSON.stringify({ port: server.port, control: control.port }));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
