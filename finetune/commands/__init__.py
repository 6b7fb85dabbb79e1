"""The subcommands of `finetune`, a file for each subject; what they need is imported when they run."""
