"""What recordings come from: fMRIPrep, XCP-D, images and matrices."""
