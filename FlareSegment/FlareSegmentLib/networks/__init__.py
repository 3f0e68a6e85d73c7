"""The networks: V-Net, U-Net and the layers that they share."""
