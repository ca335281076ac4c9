"""Ask the base and the tuned model the same questions.

python examples/chat.py runs/demo     # a run that is there
python examples/chat.py               # tune a small one first
"""

import sys

import shepherd

if len(sys.argv) > 1:
    run = shepherd.open_run(sys.argv[1])
else:
    only = {"arms": ["base", "federated"], "generate": 0}  # no baselines, and answers come below
    run = shepherd.run(shepherd.load_config("demo", run={"name": "chat"}, evaluation=only))

tuned = shepherd.load_tuned(run)  # or run.load(round=2) for an earlier round whose checkpoint was kept
for question in ("Why does bread rise?", "Name three animals that live on a farm."):
    print("Q:", question)
    # The same weights twice: bare=True leaves the adapter out. Temperature 0 would be greedy.
    for name, bare in (("base", True), ("tuned", False)):
        print(f"   {name}:", tuned.generate(question, max_new_tokens=40, temperature=0.7, seed=1, bare=bare))

# A conversation is a list of turns that ends with the user's.
turns = [
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Green."},
    {"role": "user", "content": "And something that has it?"},
]
print("tuned, after two turns:", tuned.generate(turns, max_new_tokens=40))
