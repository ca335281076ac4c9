"""Chat templates that do what those of well-known families do, in a few lines each, with tokenizers to go with them."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny_tokenizers as tiny

LLAMA_3 = (  # a date in every prompt: the caller's, or the day's; texts are trimmed
    "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL_1 = (  # the system turn goes into the first user turn; roles must alternate
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_3 = (  # the system turn goes into the last turn, where that is the user's; tools stand before it
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}"
    "{% if tools and loop.last %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}"
    "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
QWEN_3 = (  # thoughts of earlier turns are taken out, and the last answer always begins with one, if need be empty
    "{% set head = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% if tools %}{{ '<|im_start|>system\n' + head + '# Tools\n' }}{% for t in tools %}{{ t | tojson + '\n' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% elif head %}{{ '<|im_start|>system\n' + head + '<|im_end|>\n' }}{% endif %}"
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' and not "
    "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}"
    "{% set content = m.content %}{% set thought = '' %}{% if m.reasoning_content is string %}"
    "{% set thought = m.reasoning_content %}{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}"
    '{% for c in m.tool_calls or [] %}{% set c = c.function or c %}{{ \'\n<tool_call>\n{"name": "\' + c.name + \'", '
    "\"arguments\": ' }}{{ c.arguments if c.arguments is string else c.arguments | tojson }}{{ '}\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_3_THINKING = QWEN_3.replace(
    "'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
DEEPSEEK_R1 = (  # cuts thoughts out of every answer, and opens one when an answer is generated
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
DEEPSEEK_R1_FIRST = DEEPSEEK_R1.replace("<|Assistant|><think>\n", "<|Assistant|>")
PHI_3 = (  # writes the tokenizer's end token after the last turn, unless an answer is to come
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GPT_OSS = (  # channels, a date, another end token after the last answer, thoughts in the last answer alone
    "{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    "{% if messages[0].role == 'system' %}{{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + "
    "'<|end|>' }}{% endif %}{% if tools %}{{ '<|start|>developer<|message|># Tools\n' }}{% for t in tools %}"
    "{{ 'type ' + t.function.name + ' = (_: ' }}{% for p in t.function.parameters.properties %}{{ p + ',' }}"
    "{% endfor %}{{ ');\n' }}{% endfor %}{{ '<|end|>' }}{% endif %}{% set ns = namespace(tool='') %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% elif m.role == 'assistant' %}"
    "{% if '<|channel|>' in m.content %}{{ raise_exception('channel tags in the content') }}{% endif %}"
    "{% if m.tool_calls %}{% set c = m.tool_calls[0].function or m.tool_calls[0] %}{% set ns.tool = c.name %}"
    "{{ '<|start|>assistant to=functions.' + c.name + '<|channel|>commentary json<|message|>' + c.arguments | tojson "
    "+ '<|call|>' }}{% elif loop.last and not add_generation_prompt %}{% if m.thinking %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}"
    "{{ '<|start|>functions.' + ns.tool + ' to=assistant<|message|>' + m.content | tojson + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
NO_PROMPT = tiny.CHATML.partition("{% if add_generation_prompt %}")[0]
TWO_STARTS = "{{ bos_token }}{{ bos_token }}" + tiny.CHATML
CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|User|>", "<|Assistant|>",
    "<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>", "<|call|>",
    "<|return|>", "[INST]", "[/INST]", "<s>", "</s>",
)  # fmt: skip
FAMILIES = {  # name: (template, end token of the tokenizer)
    "chatml": (tiny.CHATML, "<|im_end|>"),
    "chatml without a generation prompt": (NO_PROMPT, "<|im_end|>"),
    "llama 3": (LLAMA_3, "<|eot_id|>"),
    "mistral 0.1": (MISTRAL_1, "</s>"),
    "mistral 0.3": (MISTRAL_3, "</s>"),
    "gemma": (tiny.GEMMA.replace("<start_of_turn>", "<|im_start|>").replace("<end_of_turn>", "<|im_end|>"), "</s>"),
    "qwen 3": (QWEN_3, "<|im_end|>"),
    "qwen 3 thinking": (QWEN_3_THINKING, "<|im_end|>"),
    "deepseek r1": (DEEPSEEK_R1, "</s>"),
    "deepseek r1, first": (DEEPSEEK_R1_FIRST, "</s>"),
    "phi 3": (PHI_3, "<|endoftext|>"),
    "gpt-oss": (GPT_OSS, "<|return|>"),
    "open-ended": (tiny.OPEN_ENDED, "</s>"),
}


def tokenizer(template: str | None, end: str = "<|im_end|>", starts: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level, with every family's control tokens; `<think>` is a token of its own, and not a control token.

    starts: whether the tokenizer puts <s> before a text.
    """
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny._byte_level(True)),
        bos_token="<s>",
        eos_token=end,
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in CONTROL if token not in ("<s>", end)],
        chat_template=template,
    )
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    if starts:
        from tokenizers import processors

        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
        )
    return made


def family(name: str) -> PreTrainedTokenizerFast:
    return tokenizer(*FAMILIES[name])
