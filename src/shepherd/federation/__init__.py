"""A federation of sites without a network: what is agreed on, the messages, the rules of both ends. No torch.

In: a run card and tasks at the coordinator, `site.toml` and rows at each site. Out: answers as bytes, and a journal of
every change. `cards.py` is what all agree on and what is a site's alone, `site.py` and `coordinator.py` are the two
ends, `transport.py` is what carries bytes between them; a new carrier is a file of `transports/`.
"""
