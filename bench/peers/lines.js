// Lines: the control connection of the Node peers. Prints {"port":P,"control":C} when both listen; ends with its parent.
"use strict";
const net = require("node:net");

// `broadcast` gets each line without its newline, as a Buffer.
exports.serve = (server, broadcast) => {
  const control = net.createServer((socket) => {
    let begun = Buffer.alloc(0);
    socket.on("data", (chunk) => {
      begun = begun.length ? Buffer.concat([begun, chunk]) : chunk;
      let begin = 0;
      for (let end; (end = begun.indexOf(10, begin)) >= 0; begin = end + 1) broadcast(begun.subarray(begin, end));
      begun = begun.subarray(begin);
    });
  });
  server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () =>
    control.listen(0, "127.0.0.1", () =>
      console.log(JSON.stringify({ port: server.address().port, control: control.address().port })),
    ),
  );
  process.stdin.resume().on("end", () => process.exit(0));
};
