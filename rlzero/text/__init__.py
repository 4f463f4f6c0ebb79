"""Text: tokenizers, templates, languages, files read as text; no JAX here."""
