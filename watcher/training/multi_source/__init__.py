"""Train networks on several sources, and judge them on sources that were left out."""
