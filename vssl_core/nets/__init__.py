"""What is trained, and the parts that several methods need."""
