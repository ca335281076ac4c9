"""Who runs the clients, behind one protocol (`round.Engine`): this process, worker processes, or sites.

In: a `TrainTask`. Out: a reply for each client, in any order: an update, a failure, or that it was late. All engines
give the same bits. To add one, write a class with the methods of `round.Engine` and a line in the table of
tests/engines/test_protocol.py.
"""
