"""What is remembered between blocks: frozen arrays and numbers."""
