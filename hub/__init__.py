"""hub: a realtime hub for bare metal.

The rooms, and what each is for; the head of each says more:

    errors message channels position cursor config     nouns: what things are called, how far somebody has read
    sections values mistakes control                   what the operator may choose, what workers tell each other
    frames deflate protocol handshake eventstream      words on the wire: bytes ⇄ objects, no I/O
    engineio_protocol socketio_protocol                the same for Socket.IO clients: packets, payloads, attachments
    auth origin limits entrance                        gates: who is it, from which page, how often; all of them
    keys keyfiles jwks tickets                         what tokens are signed with; who is let in once without one
    forwarded quotas refusals nesting                  from which address; how much one may have; what was refused; JSON
    census                                             how much one has on all workers together
    permissions capabilities grants expiry narrowing   who may do what; what tokens add to the rules, and until when
    session identity ids services                      one client; who it is and what it may do; what all share
    membership publish asking                          its channels; the one door in; questions
    subscribe wishes wants watch                       the way into a channel; what may be asked for; lists of channels
    symbols patterns                                   which symbols there are; lists that hold all that begin so
    streams stream ring recovery catchup               nothing is lost silently: contiguity, gaps, who comes back
    snapshots pages loopback                           newest values, histories; whether what is published arrives
    presence attendance roll                           who is there: lease and sender, our own clients, all in Redis
    fanout gathering audience groups lines sweep       the one door out: batches, who receives what, the bare write loop
    pace views remembered                              rates, fewer fields and marks; what a client changed
    outbox backlog                                     what waits for one client, and for all slow ones of a worker
    store scripts ingest registry                      Redis: the way to it, what runs in it, what comes out, who lives
    broker lane history headroom                       publications into it, what it keeps of them, and whether it can
    mailbox redelivery notice users rpc api_mailbox    one user: what is kept for it, its devices, what clients may call
    app app_runner app_gate app_seat app_session       server code: what it is written with, its handlers, its clients
    app_guest manifest errands emission app_testing    plain HTTP's clients; of killed workers, of others; events; a kit
    tick sources replay lease ticker term              the stock ticker: one leader in the cluster runs the source
    intake thinning bars barfeed                       its ticks in order, at a pace; and what a chart is made of
    tls tls_handshake tls_bridge certificates          encrypted: a socket, its beginning, its stand-in, its keys
    acceptor balance connection outgoing               the plane: the way in, one socket, what goes out by it,
    reactor wheel drain                                epoll and deadlines, the end
    fairness curb                                      whose bytes are read later, and whose connections never begin
    revocation orders api_control                      who is kept out; what is done to connections, on all workers
    doors httpd heads cors assets api transports       the doors: HTTP, files, the server API, one room for each wire
    transports.websocket transports.http_stream        the native protocol: over frames, over an answer that never ends
    transports.emulation                               and its commands, in requests of their own
    transports.plain transports.sse                    plain HTTP: who asks for what; event streams
    transports.sse_stamps                              and the one cursor of those with several channels
    transports.market                                  and what is wanted there of `latest` channels
    transports.longpoll transports.publishing          one request at a time: what is new, and publishing
    transports.poll_answer                             what one answer holds, and what its cursor says
    transports.engineio transports.polling             Socket.IO: sessions by polls or WebSocket, and their address
    transports.engineio_probe                          WebSockets that are to take over one that polls
    transports.engineio_raw                            the same sessions without Socket.IO, for an application
    transports.socketio transports.socketio_session    its connections, and clients in namespaces: events and acks
    transports.socketio_return                         and whether one that was away has lost something
    resume recall                                      its clients that come back: how far they were, their records
    worker building links leaving                      a process: who builds all its rooms, their life and its end
    seat supervisor processes heartbeat                and who watches over it, and keeps one on each place
    reloadable reload retune instructions status       new settings while it runs: which, and how workers get them
    relay neighbours handover tunnel                   what a worker asks of, or gives to, the one with the session
    deploy bequest inheritance rehearsal               new code in the same process: tried out, taken over
    deploying whereabouts                              asked for from outside, and how the hub that runs is found
    retreat                                            back to the version before, where the new one fails
    listeners activation embedded state systemd        what a process stands on: sockets, a store, its manager
    secret_files prctl tasks signals                   and what it is careful with
    log journal tcp_info                               its lines, how they look, what the kernel has counted
    histogram tally lag figures facts                  what is counted: times, clients, the loop; all of a worker's
    metrics metric_names exposition health monitoring  the same for Prometheus, of all workers; does it live; the pages
    cli serve options remote operating client urls     the command line
    benching bench_run bench_crew bench_wires          a load of clients: the run, its processes, their clients,
    bench_publish bench_figures                        who publishes, and what came of it
    reloading                                          asking for new settings from outside
    tune tuning changes                                kernel settings and limits: which, installed, taken back
    doctor examination machine storefacts capacity     what breaks on this machine: facts, what a connection costs
    diagnosis kernelrules hostrules storerules         and the rules that judge them
    admin admin_keys trace tap                         the operators' page, who may see it, frames on show
    saving backup restore archive                      mailboxes and history into a file, and back

The path of a message:

     1 transports/websocket   receives bytes, frames take them apart
     2 protocol.decode        bytes → commands
     3 session.handle         who is it, may it
     4 publish.publish        the one door in: shape and body
     5 broker.publish         one round trip to Redis; `latest`: one Lua script
     6 ingest                 every worker's subscriber connection, one batch for each read
     7 fanout.deliver         the one door out: one batch for each loop turn
     8 WireForm               encode once for each wire, join once for all with the same channels
     9 outbox                 only of who is slow or has replies waiting: order, conflation, byte budget
    10 sweep                  one write for each connection and batch, in slices

Steps 6 to 10 are plain calls: no Task, Future, log call or exception for each recipient.
Who may import whom is one tuple in tests/test_imports.py.
"""

__version__ = "0.1.0"
