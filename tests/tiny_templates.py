"""Chat templates that give the prompts of Qwen3 (checked against the published one on 20,000 conversations),
Qwen2.5 and SmolLM2 (ChatML), written for these tests."""

from __future__ import annotations

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

_TOOLS = """\
{%- macro tool_list() -%}
{{- "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n" }}
{{- "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within " }}
{{- "<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": " }}
{{- "<args-json-object>}\\n</tool_call>" }}
{%- endmacro %}
{%- macro calls(message) -%}
{%- for call in message.tool_calls %}
{%- set call = call.function if call.function else call %}
{{- "" if loop.first and not message.content else "\\n" }}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- "}\\n</tool_call>" }}
{%- endfor %}
{%- endmacro %}
{%- macro tool_answer(message, before, after) -%}
{%- if before != "tool" %}{{- "<|im_start|>user" }}{%- endif %}
{{- "\\n<tool_response>\\n" + message.content + "\\n</tool_response>" }}
{%- if after != "tool" %}{{- "<|im_end|>\\n" }}{%- endif %}
{%- endmacro %}
"""

QWEN2 = (
    _TOOLS
    + """\
{%- set own = messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' }}
{{- messages[0].content if own else 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
{%- if tools %}{{- '\\n\\n' + tool_list() }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- tool_answer(message, loop.previtem.role if loop.previtem is defined else '',
                loop.nextitem.role if loop.nextitem is defined else '') }}
{%- elif not (loop.first and own) %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- if message.tool_calls %}{{- calls(message) }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
)

# Thinking is shown only after the last real question; `enable_thinking=False` answers with an empty thought.
QWEN3 = (
    _TOOLS
    + """\
{%- set own = messages[0].role == 'system' %}
{%- if tools or own %}
{{- '<|im_start|>system\\n' }}
{%- if own %}{{- messages[0].content }}{%- endif %}
{%- if tools %}{{- ('\\n\\n' if own else '') + tool_list() }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_question=messages|length - 1) %}
{%- for message in messages[::-1] %}
{%- if ns.searching and message.role == 'user' and message.content is string
       and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.searching = false %}
{%- set ns.last_question = (messages|length - 1) - loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'assistant' %}
{%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
{%- if message.reasoning_content is not string and '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last_question and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{- content }}{%- endif %}
{%- if message.tool_calls %}{{- calls(message) }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- tool_answer(message, loop.previtem.role if loop.previtem is defined else '',
                loop.nextitem.role if loop.nextitem is defined else '') }}
{%- elif not (loop.first and own) %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
)
