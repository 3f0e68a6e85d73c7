"""What is measured on label maps: Dice, NSD, HD95, volumes and densities."""
