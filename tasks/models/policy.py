"""What the networks of policies make of observations, before their heads."""

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class ImageFeatures(BaseFeaturesExtractor):
    """Three convolutions and a layer that the actor and the critic share (Kostrikov, 2018).

    Its third convolution has half as many channels as stable-baselines3's ``NatureCNN``. With the
    two heads it has 866,439 parameters for Pong.

    Args:
        observation_space: Images ``[channels, height, width]`` of at least 36 pixels.
        width: The channels of the first and the third convolution; the second has twice as many.
        hidden: The features.
    """

    def __init__(self, observation_space: spaces.Box, width: int = 32, hidden: int = 512) -> None:
        super().__init__(observation_space, hidden)
        self.convolutions = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], width, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, *observation_space.shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features ``[batch, hidden]`` of images scaled to [0, 1]."""
        features: Tensor = self.linear(self.convolutions(observations))
        return features


class SignedFeatures(BaseFeaturesExtractor):
    """Numbers with their negatives, for the perceptron of a policy.

    Neurons whose weights have a mean of zero, as Nero and the rotational variants keep them, do not
    see the mean of their inputs. Of four numbers that is a part of the state; of these eight it is
    nothing.
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 2 * get_flattened_obs_dim(observation_space))

    def forward(self, observations: Tensor) -> Tensor:
        """Return ``[batch, 2 × numbers]``."""
        flat = observations.flatten(1)
        return torch.cat([flat, -flat], dim=1)
