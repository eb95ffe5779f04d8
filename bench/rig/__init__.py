"""The rig under the benches: compile the C, start servers and populations, read what the kernel counts, print figures.

A bench (fanout.py and its neighbours) is a work; what it has in common with the others is here. From below to above:

    processes   CPU time, memory, pinning, start and end of one process
    build       compiles the population and the limits into bench/.build/
    population  the load: N clients and a publisher in one C process
    server      the record that describes a running server, and the bytes of a message
    counters    what a running hub counts itself
    hub peers   start the hub, the limits and the peers
    servers     the table of them all
    report      medians, spreads, paired ratios; tables; machine and versions; results/
    feed        the hub's own ticker, told when to tick and how fast
    stage       a hub, its feed and clients with watch lists; one slot of them, charged and checked
    slots       one server's turn in one round, charged and set beside the others'
    picture     bars as SVG
"""
