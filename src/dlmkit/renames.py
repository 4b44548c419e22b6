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
}
CHOICES: dict[str, str] = {}
