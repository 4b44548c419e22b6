"""Names that users typed in earlier versions, each with the one that replaced it."""

KEYS: dict[str, str] = {
    "data.accumulate": "batch.accumulate",
    "data.keep_documents_apart": "data.document_masking",
    "data.micro_batch_size": "batch.micro_size",
    "data.num_steps": "num_steps",
    "data.num_train_blocks": "data.num_train_sequences",
    "data.num_val_blocks": "data.num_val_sequences",
    "data.num_workers": "batch.num_workers",
    "data.parts": "data.sources",
    "data.seed": "seed",
    "t_sampler.centred": "t_sampler.by_variance",
    "t_sampler.floor": "t_sampler.uniform_share",
    "process.min_share": "corruption.min_share",
}
CHOICES: dict[str, str] = {
    "process=absorbing_complementary": "corruption=complementary",
    "process=absorbing_fixed_count": "corruption=fixed_count",
}
