"""What users see of an error: its reason in a sentence, and a traceback of their own lines."""
