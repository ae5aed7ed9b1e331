"""Files in and out: pictures, video, sound and the faces in them; no torch at import."""
