"""What latent-variable methods share: encoders, decoders, experts, routes, flow matching, the latent model."""
