"""Few weights that learn, and adapters that others trained. A file each:

    methods      which weights learn: the head, an adapter of `peft`, a prompt
    adalora      an adapter's ranks, as they fall while it learns
    prompts      virtual tokens, which stay in the model
    merge        an adapter goes into the weights of its model, with proof
    peft_folder  an adapter folder of the user's

Importing this package imports none of them: the command line asks it what methods there are.
"""

from __future__ import annotations

from typing import Literal, get_args

PromptMethod = Literal["prompt", "prefix"]
Method = Literal["full", "frozen", "lora", "adalora", "ia3", PromptMethod]
METHODS: tuple[Method, ...] = get_args(Method)
PROMPTS: tuple[PromptMethod, ...] = get_args(PromptMethod)
