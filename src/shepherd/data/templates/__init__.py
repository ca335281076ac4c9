"""Prompt templates: messages in, text and the spans that are learned out.

`chat.py` renders by a tokenizer's chat template, `text.py` by a plain format string; both give a `Rendering`.
"""
