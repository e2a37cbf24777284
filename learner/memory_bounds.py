"""What bounds the learner's memory; apart from it, since the memory planner counts it too, and needs no PyTorch."""

# Of DeepSpeed's buckets. Its default, 5e8 elements, costs about 1 GB for each of two buckets.
BUCKET_ELEMENTS = 50_000_000
# Keys that are gathered for the attention of a micro-batch, of each sequence by itself, to each of learner.max_tokens.
KEYS_PER_TOKEN = 8
