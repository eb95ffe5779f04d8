"""Soak: a real hub under everything at once for an hour, and whether anything grows, stays behind or gets lost.

    __main__     `make soak`: arguments, table, exit status
    rig          chaos's rig with a longer load, and its samples
    churn        a load process of short lives on all wires
    slope        what a line through samples allows to say
    watched_hub  a hub whose workers tell tasks, threads and deadlines of their own

The clients that recover, the publishers and the checker, which finds a silent loss, are those of tests/chaos.
"""
