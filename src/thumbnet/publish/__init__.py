"""What leaves the project: exported models, the Hugging Face Hub."""
