"""The joint audio-video model; needs torch and safetensors only."""
