"""Who runs the clients, behind one protocol (`round.Engine`): in this process, or in worker processes.

In: a `TrainTask`. Out: one update or failure for each client, in any order. All engines give the same bits.
To add one, write a class with the methods of `round.Engine`.
"""
