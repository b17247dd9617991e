"""Training and evaluation of the networks in nets/; the stream never imports this.

    annotations, images -------> LabelledImage --augment--> Example --targets--> Batch     workers
                                                                                    |
    recipe --config--> trainer: net --> losses --> gradients --> Adam, schedule --> weights --ema--.
                        |                                                                        |
                   checkpoint: last.pt, exact resume                best.safetensors <--- average
                                                                                                 |
    metrics (AP, bootstrap) <--- results <--- predict: picture -> people, as the stream decodes -'
       |
    report: table, plot, drawings

    config     what a recipe may say
    annotations  COCO and CrowdPose files -> labels    image_store  folders and archives of images
    teacher_keypoints    a file of what another model says of the same people
    teacher    a model that runs beside the training and says it of every example
    augment    one example of one image, or a mosaic of four
    examples   which image comes when; workers; batches
    targets    heatmaps and tag indices        losses     heatmap, push and pull
    trainer    the training itself (train.py); its parts: start, optimiser, schedule, ema, ranks
    validation AP while it runs                    checkpoint last.pt and how it is resumed
    run_log    what it writes down: losses.jsonl, TensorBoard (overview), the progress line
    evaluation, predict, metrics, oracle, report     the evaluation (evaluate.py)

Imports nets, kernels and pipeline's estimator, nothing above.
"""
