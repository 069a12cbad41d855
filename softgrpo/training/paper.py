"""The paper, as TRL's model card cites it."""

PAPER = {
    "title": "SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via "
    "Gumbel-Reparameterized Soft-Thinking Policy Optimization",
    "id": "2511.06411",
    "citation": "@article{zheng2025softgrpo,\n"
    "    title  = {{SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via "
    "Gumbel-Reparameterized Soft-Thinking Policy Optimization}},\n"
    "    author = {Zheng and Gu and Liu and Teh and Lee},\n"
    "    year   = 2025,\n"
    "    eprint = {arXiv:2511.06411},\n"
    "}",
}
