import torch
import torch.nn as nn
import torch.nn.functional as F


class SmoothCrossEntropy(nn.Module):
    def __init__(self, num_classes, epsilon=0.1, use_gpu=True):
        super().__init__()
        self.num_classes, self.epsilon, self.use_gpu = num_classes, epsilon, use_gpu

    def forward(self, inputs, targets):
        log_probs = F.log_softmax(inputs, dim=1)
        onehot = torch.zeros(log_probs.size()).scatter_(1, targets.unsqueeze(1).data.cpu(), 1)
        if self.use_gpu:
            onehot = onehot.cuda()
        onehot = (1 - self.epsilon) * onehot + self.epsilon / self.num_classes
        return (-onehot * log_probs).mean(0).sum()


class CenterLoss(nn.Module):
    def __init__(self, num_classes, feat_dim):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, feat_dim))

    def forward(self, x, labels):
        distmat = torch.cdist(x, self.centers, p=2, compute_mode='donot_use_mm_for_euclid_dist').pow(2)
        classes = torch.arange(self.centers.size(0)).long()
        if labels.is_cuda:
            classes = classes.cuda()
        mask = labels.unsqueeze(1).eq(classes)
        return (distmat * mask.float()).clamp(min=1e-12, max=1e12).sum() / x.size(0)


class SupConLoss(nn.Module):
    def forward(self, features, labels, temperature=0.5):
        device = (torch.device('cuda') if features.is_cuda else torch.device('cpu'))
        n = features.shape[0]
        labels = labels.contiguous().view(-1, 1)
        mask = torch.eq(labels, labels.T).float().to(device)
        logits = torch.matmul(features, features.T) / temperature
        logits_mask = torch.ones_like(mask) - torch.eye(n, device=labels.device)
        mask = mask * logits_mask
        log_prob = logits - torch.log((torch.exp(logits) * logits_mask).sum(1, keepdim=True))
        return -((mask * log_prob).sum(1) / mask.sum(1).clamp(min=1)).mean()


def accuracy(output, target):
    if output.type() == 'torch.cuda.FloatTensor':
        assert target.type() == 'torch.cuda.LongTensor'
    elif output.type() == 'torch.FloatTensor':
        assert not output.is_cuda and target.type() == 'torch.LongTensor'
    return (output.argmax(1) == target).float().mean().item()


def main():
    use_gpu = torch.cuda.is_available()
    torch.manual_seed(3)
    backbone, head = nn.Linear(12, 8), nn.Linear(8, 5)
    xent, center, supcon = SmoothCrossEntropy(5, use_gpu=use_gpu), CenterLoss(5, 8), SupConLoss()
    if use_gpu:
        backbone, head, center = backbone.cuda(), head.cuda(), center.cuda()
    params = [*backbone.parameters(), *head.parameters(), *center.parameters()]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    for batch_idx in range(6):
        data, labels = torch.randn(16, 12), torch.randint(5, (16,))
        if use_gpu:
            data, labels = data.cuda(), labels.cuda()
        features = backbone(data)
        outputs = head(features)
        loss = xent(outputs, labels) + 0.01 * center(features, labels)
        loss = loss + 0.1 * supcon(F.normalize(features, dim=1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print("Batch {}\t Loss {} Acc {:.2f}".format(batch_idx + 1, loss.item().hex(), accuracy(outputs, labels)))


if __name__ == '__main__':
    main()
