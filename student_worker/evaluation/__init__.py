"""How near a student is to its teacher, on text that neither is trained on here."""
