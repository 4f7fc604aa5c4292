# Scores of images and texts by transformers' Blip2ForImageTextRetrieval and by the arithmetic of LAVIS's
# classes, from an exported folder and an exported state dict. lavis.py comes before it.
def by_transformers():
    model, report = Blip2ForImageTextRetrieval.from_pretrained(request["hf"], output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    model.eval()
    cosine, probability = [], []
    for image in images:
        rows = [[], []]
        for text in texts:
            inputs = dict(pixel_values=image[None], input_ids=torch.tensor([text]))
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            itc = model(**inputs, use_image_text_matching_head=False).logits_per_image
            itm = model(**inputs, use_image_text_matching_head=True).logits_per_image
            rows[0].append(itc.item())
            rows[1].append(itm.double().softmax(1)[0, 1].item())
        cosine.append(rows[0])
        probability.append(rows[1])
    return dict(itc_cosine=cosine, itm_probability=probability)


def by_lavis():
    model = Lavis(request["lavis"], request["heads"], request["tower_heads"])
    scores = [[model.score(image, text, request["text_len"]) for text in texts] for image in images]
    return dict(itc_cosine=[[pair[0] for pair in row] for row in scores],
                itm_probability=[[pair[1] for pair in row] for row in scores])


print(json.dumps(dict(transformers=by_transformers(), lavis=by_lavis(), ids=texts)))
