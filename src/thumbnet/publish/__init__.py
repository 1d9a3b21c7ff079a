"""Export a network to other formats, and publish it on the Hugging Face Hub."""
