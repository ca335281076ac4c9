"""Prompt templates: messages in, text and the spans of its answers out.

`chat.py` renders by a tokenizer's chat template, `text.py` by a plain text with placeholders. Both return a
`rendering.Rendered` and follow `rendering.Template`, which a template of yours has to follow too; `prompts.py` finds
templates by name.
"""
