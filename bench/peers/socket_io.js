// npm socket.io: one emit() to everybody. At its fastest: WebSocket alone, no compression, no HTTP fallback, no client
// files, no connection state recovery; its adapter then encodes a packet, and its frame, once for all.
"use strict";
const http = require("node:http");
const { Server } = require("socket.io");
const { serve } = require("./lines.js");

const server = http.createServer();
const io = new Server(server, { transports: ["websocket"], perMessageDeflate: false, serveClient: false });
serve(server, (line) => io.emit("m", JSON.parse(line)));
