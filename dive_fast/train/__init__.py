"""Training: identities and modality LoRA on a frozen base (`personalize`), and what every training loop needs."""
