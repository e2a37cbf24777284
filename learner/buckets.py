"""How large DeepSpeed's buckets are; apart from it, since the memory planner counts them too."""

# DeepSpeed's default, 5e8 elements, costs about 1 GB for each of two buckets.
BUCKET_ELEMENTS = 50_000_000
