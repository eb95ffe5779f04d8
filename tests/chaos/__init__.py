"""Chaos: load, faults and a checker that together show that nothing is lost silently.

    events checker            what happened, one line each, and what it adds up to
    proxy stores              a network that misbehaves on request; Valkeys that are killed, paused, promoted
    client publisher load     hundreds of light clients and publishers; one process for each role
    sdk.mjs                   stock JavaScript SDKs, the same words on the same pipes
    rig faults                everything started together; what is done to it
    liar                      a hub in memory that lies on purpose: it shows that the checker can fail
    __main__                  `make chaos`: the matrix with figures

The short version for `make test` is test_short.py.
"""
