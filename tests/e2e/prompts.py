"""Prompts of many kinds, none of which any exit was tuned on."""

PROMPTS = (
    "Why is the sky blue?",
    "What is the capital of France, and what is it known for?",
    "Write a short poem about autumn.",
    "Explain photosynthesis to a child.",
    "Write a Python function that reverses a string.",
    "List five healthy breakfast ideas.",
    "Summarize the plot of Romeo and Juliet.",
    "What causes the seasons on Earth?",
    "Translate 'good morning' into Spanish and French.",
    "Give me three tips for better sleep.",
    "What is 17 plus 25? Explain the steps.",
    "Tell me a joke about computers.",
    "How does a bicycle stay upright?",
    "Write an email asking a colleague for a meeting.",
    "What are the main parts of a cell?",
    "Describe a day in the life of a lighthouse keeper.",
    "Compare cats and dogs as pets.",
    "Write a SQL query that counts users per country.",
    "Who was Marie Curie?",
    "Why do we need to drink water? Réponds en français, s'il te plaît. 🙂",
)
