// npm ws as its README broadcasts: a loop of send() over the clients. At its fastest: no compression, no tracking beyond
// the server's own set, and text that is bytes already, so that no client's send encodes it again.
"use strict";
const http = require("node:http");
const { WebSocketServer, WebSocket } = require("ws");
const { serve } = require("./lines.js");

const server = http.createServer();
const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (client) => client.on("error", () => {}));
serve(server, (line) => {
  for (const client of sockets.clients) if (client.readyState === WebSocket.OPEN) client.send(line, { binary: false });
});
