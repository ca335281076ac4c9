"""Updates between local training and aggregation: transforms, wire format, gate, spool.

Input: bytes or arrays sent by a client. Output: a valid `ClientUpdate`, or a `ClientFailure` with the reason. Content
from a client is untrusted: it is read field by field, and none of its text is shown. A client reads the task that it
is sent (`task_wire.py`) in the same way.
"""
