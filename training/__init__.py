"""Training and evaluation of the networks in nets/; the stream never imports this.

    annotations, images --data--> LabelledImage --augment--> Example --targets--> Batch     workers
                                                                                    |
    recipe --config--> loop:  net --> losses --> gradients --> Adam, schedule --> weights --ema--.
                        |                                                                        |
                       state: last.pt, exact resume                 best.safetensors <--- average
                                                                                                 |
    metrics (AP, bootstrap) <--- results <--- predict: picture -> people, as the stream decodes -'
       |
    report: table, plot, drawings

    config     what a recipe may say           data       COCO and CrowdPose files, image archives
    augment    one example of one image, or a mosaic of four
    examples   which image comes when; workers; batches
    targets    heatmaps and tag indices        losses     heatmap, push and pull
    schedule, ema, state, loop                 the training itself (train.py)
    evaluation, predict, metrics, oracle, report     the evaluation (evaluate.py)

Imports nets and kernels, nothing above.
"""
