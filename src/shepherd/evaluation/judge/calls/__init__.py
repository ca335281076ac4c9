"""Calls of a judge: from pairs of answers to one recorded line per call.

Input: answers of arms, a protocol, an endpoint. Output: lines of calls.jsonl, which `judge.replay` reads. Add a
protocol in `protocols.py`: a prompt with an id and the reading of its last line.
"""
