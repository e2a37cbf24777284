"""What no honest ticket exceeds: the learner refuses more, and a configuration that would lead to more is refused."""

MAX_EPISODES_PER_TICKET = 4096
MAX_TOKENS_PER_TICKET = 2**27
MAX_REWARD = 1e6
# A token's id, and its log-probability.
TOKEN_BYTES = 8
# vLLM raises a lower one to this.
LOWEST_TEMPERATURE = 0.01
