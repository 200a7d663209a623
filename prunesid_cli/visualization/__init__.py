"""Pictures of what was kept: from a picture, its layout and what is to be marked, to pixels or to text."""
