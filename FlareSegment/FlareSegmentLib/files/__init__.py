"""Files in and out: CTs, label maps and DICOM, checked as strangers' files must be."""
