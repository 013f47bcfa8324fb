"""What several searches share. Nothing here is trusted: checks import none of it."""
