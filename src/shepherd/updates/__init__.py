"""What happens to a client's update between its training and the aggregation: transforms, wire format, gate, spool.

In: bytes or arrays that a client sent. Out: a `ClientUpdate` in order, or a `ClientFailure` that says why not. Whatever
a client wrote is untrusted: it is read field by field, and none of its text is shown.
"""
