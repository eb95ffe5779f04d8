/* A WebSocket for Centrifugo's SDK under Node that keeps what browsers promise, and what the SDK (5.7.4) relies on. */

import WebSocket from "ws";

export class Socket extends WebSocket {
  constructor(address, protocols = []) {
    // As in browsers, each message is an event of its own. With two in one turn the SDK hands a publication to the
    // application before the subscribe reply that came in front of it.
    super(address, protocols, { allowSynchronousEvents: false });
  }

  // Nor has a browser's socket any message once it is being closed. The SDK would take it for one of the connection
  // that it has by then, which has recovered it already.
  emit(type, ...rest) {
    return (type !== "message" || this.readyState === WebSocket.OPEN) && super.emit(type, ...rest);
  }
}
