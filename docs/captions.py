"""What one sees in the gallery."""

NETS_IN_WORDS = {
    "ffnn": "A feed-forward net of 20 layers with batch normalization",
    "efficientnet": "EfficientNet-B0",
    "resnet50": "ResNet-50",
    "vit": "A Vision Transformer of 12 blocks",
    "gru": "A classifier with three layers of GRU",
    "llama": "A Llama of 12 blocks",
    "gan_generator": "The generator of a GAN",
    "gan_discriminator": "The discriminator of the GAN",
}
FIGURES_IN_WORDS = {
    "spp": "second moments of activations, weights and gradients",
    "gradient": "second moments of the gradients",
    "heatmap": "gradients by layer and step",
    "heatmap_per_sample": "gradients by layer and step, times the size of the batch",
    "expected": "second moments of the first step beside those that theory expects",
}
WHAT_ONE_SEES = {
    "ffnn": {
        "spp": "Each normalization brings activations back to 1; gradients grow towards the input by the same factor "
        "per block.",
        "gradient": "Only the growth towards the input: over 20 blocks about three decades, less after training.",
        "heatmap": "The same at every step, two to a column: the gradients fade from the output on as the net learns; "
        "the marks are below the smaller last batches.",
        "heatmap_per_sample": "Times the size of the batch, the stripes of the last batches are mostly gone.",
        "expected": "Theory at initialization lies on the activations and on the slope of the gradients.",
    },
    "efficientnet": {
        "spp": "Activations stay within a few decades; between the blocks the sums grow, and normalizations are at 1.",
        "gradient": "Gradients grow towards the input; within a block the gates of squeeze-and-excitation stand out.",
        "heatmap": "Rows differ more than steps do: the gates are the stripes that recur in each block.",
        "heatmap_per_sample": "Times its size, the last batch is still a little brighter: normalizations see less.",
        "expected": "What theory expects of the first step, beside it.",
    },
    "resnet50": {
        "spp": "A panel per role. The residual stream, relu#3, grows within a stage; the next stage resets it.",
        "gradient": "In all roles gradients grow towards the input, by three decades over 16 blocks.",
        "heatmap": "Stages are brackets; the last batches of 16 instead of 32 samples have marks.",
        "heatmap_per_sample": "Times the size of the batch: what is left of the last batches is the work of batch "
        "normalization, which sees fewer samples.",
        "expected": "What theory expects of the first step, beside it.",
    },
    "vit": {
        "spp": "LayerNorms are at 1 in all blocks; the output of attention grows with depth, that of the MLP does not.",
        "gradient": "Gradients are even from block 2 on, and larger in the first, where the stream begins.",
        "heatmap": "Twelve equal blocks; the last batches, 8 samples instead of 32, are brighter and marked.",
        "heatmap_per_sample": "Times the size of the batch, the stripes are gone: here samples do not see each other.",
        "expected": "What theory expects of the first step, beside it.",
    },
    "gru": {
        "spp": "States of the GRU are small, and LayerNorm makes them 1; the logits grow as the net learns.",
        "gradient": "All gradients fall as the net learns.",
        "heatmap": "Step by step they do so in flickers, from batch to batch; the marks are at the smaller batches.",
        "heatmap_per_sample": "Times the size of the batch, the smaller batches are like their neighbors.",
    },
    "llama": {
        "spp": "A panel per role: what attention and MLP add to the stream grows with training, deeper blocks first.",
        "gradient": "Values and outputs have the largest gradients, queries and keys the smallest.",
        "heatmap": "The rows of queries and keys are the dark ones in each block.",
        "heatmap_per_sample": "Times the size of the batch (in sequences), without the marks of the smaller batches.",
        "expected": "What theory expects of the first step, beside it.",
    },
    "gan_generator": {
        "spp": "With weights of 0.02, convolutions put out little, and each normalization brings it back to 1.",
        "gradient": "So the gradients before a normalization are a hundred times larger than those after it.",
        "heatmap": "The gradients come from the discriminator, and change little while it learns.",
        "heatmap_per_sample": "Times the size of the batch.",
        "expected": "What theory expects of the first step, beside it.",
    },
    "gan_discriminator": {
        "spp": "Activations of both passes, over real and over generated images.",
        "gradient": "Gradients fade as the discriminator gets its way.",
        "heatmap": "The same step by step.",
        "heatmap_per_sample": "Times the size of the batch.",
        "expected": "What theory expects of the first step, beside it.",
    },
}
