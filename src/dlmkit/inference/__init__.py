"""Text from trained models: a loaded model with its parts, completed texts, and files of prompts."""
